"""Running blocks: stages, their caches, and the engines that compute them."""
