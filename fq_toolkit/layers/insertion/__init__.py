"""Put quantizers into a discriminator that somebody else wrote."""
