"""The evaluation protocol of the literature: samples and reference images, in features of pretrained networks."""
