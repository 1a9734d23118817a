"""The live view of a running stack: readings of the picker's pages, what they mean together, and how that looks."""
