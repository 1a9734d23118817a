"""The picker's process."""
