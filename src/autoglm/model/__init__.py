"""The architecture: configurations, processors of image, sound and text, the network, its weights on disk."""
