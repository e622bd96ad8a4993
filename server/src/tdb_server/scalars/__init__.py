"""From one forward and one backward pass to the numbers of an answer."""
