"""FQ-U-GAT-IT: image-to-image translation between two domains."""
