"""What a training run will take before it is begun: memory, steps that fit, time, money. Nothing is computed or loaded;
shapes alone are followed (trace.py), and the arithmetic is closed forms with their sources (closed.py, cost.py)."""
