"""DeFormer: lower layers read question and passage apart, so that a passage is read once."""
