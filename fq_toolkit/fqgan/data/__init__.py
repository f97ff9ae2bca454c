"""Images: files, folders, archives, and the data sets made of them."""
