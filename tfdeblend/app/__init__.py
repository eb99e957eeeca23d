"""The command line, its runs, figures and reports."""
