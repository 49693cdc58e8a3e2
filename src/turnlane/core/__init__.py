"""The words: values and names that every floor shares. No clock, no dice, no disk, no network."""
