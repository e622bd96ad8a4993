"""A result as one self-contained HTML page: pictures to look at, print and send around."""
