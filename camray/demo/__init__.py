"""What `camray demo` audits: links to the archive and the cheating model of the demonstration."""
