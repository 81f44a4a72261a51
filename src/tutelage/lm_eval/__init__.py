"""lm-eval's tasks on our engine: ``python -m tutelage.lm_eval run --model tutelage --model_args pretrained=DIR``."""
