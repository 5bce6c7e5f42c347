"""Any image into any other format: what is changed on the way are views, images that read others box by box."""
