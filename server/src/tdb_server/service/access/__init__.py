"""Who may connect, who may call, and how much: TLS, tokens and the limits of each caller."""
