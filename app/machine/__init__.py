"""The machine: its cores, memory, GPU and threads."""
