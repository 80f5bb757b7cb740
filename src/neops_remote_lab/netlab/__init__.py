"""netlab: starting it, reading what it says, and the one lab of this host."""
