"""From conversations to rows of tokens, and back."""
