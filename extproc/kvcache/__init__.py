"""Who holds which block: `index.PrefixIndex`, learned from the picker's own decisions."""
