"""The HTTP side: routes, what they read and answer, and the parts that they work with."""
