"""mednet-watcher: sorts the radiographs that arrive in a shared inbox.

It takes no medical decision. Each image is filed under one of six classes, or
handed to a person when the model is not sure.
"""

__version__ = "0.1.0"
