"""The settings: ``config.yaml``, overlaid by the environment variables ``MEDNET_SECTION__KEY``."""
