"""For all examples: the tests show what they see, without a line for each HTTP request of the client."""

import logging

logging.getLogger("httpx").setLevel(logging.WARNING)
