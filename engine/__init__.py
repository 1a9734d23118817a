"""What runs inside an inference pod: its helpers, and an engine simulator that stands in where no accelerator is."""
