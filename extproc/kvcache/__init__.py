"""Who holds which block: `index.PrefixIndex`, learned from decisions; `exact.ExactIndex`, told by the engines."""
