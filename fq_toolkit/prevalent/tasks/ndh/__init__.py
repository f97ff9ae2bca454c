"""NDH: navigation from dialog history."""
