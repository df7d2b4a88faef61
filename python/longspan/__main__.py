"""`python -m longspan` prints the environment report."""

from longspan.report import text

print(text())
