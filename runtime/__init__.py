"""Everything that rests on Flower's private parts: its programs, its apps, its SuperLink."""
