"""The stages from raw conversations to a chat endpoint, each on its Ray library, and the command line."""
