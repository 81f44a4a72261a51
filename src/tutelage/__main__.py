"""`python -m tutelage`, as `torchrun -m tutelage run recipe.toml` needs it."""

from tutelage.cli import main

main()
