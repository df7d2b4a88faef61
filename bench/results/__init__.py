"""The results page: every figure of bench/records as tables, JSON and plots, made by one command."""
