"""From a stored message to its accepted answer: lanes, attempts, replies, and the brake."""
