"""From a picture to a decision. Only mednet, classifier and the backends import torch."""
