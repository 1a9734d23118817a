"""Decisions taken again: `log` reads them, `again` asks a configuration, `shown` puts the outcome into words."""
