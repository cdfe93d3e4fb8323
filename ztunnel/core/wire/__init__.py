"""How things look on the wire: sans-I/O codecs, bytes in, values out."""
