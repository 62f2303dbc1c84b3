"""Handwritten digits, house numbers and photographs, and how scenes are composed of them."""
