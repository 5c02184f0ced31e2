"""The command line: verbs and options, thin over the package."""
