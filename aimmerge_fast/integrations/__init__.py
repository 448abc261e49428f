"""AIMMerging inside other people's training loops, through the hooks that they offer."""
