"""The literature's evaluation: samples and reference images in features of pretrained networks."""
