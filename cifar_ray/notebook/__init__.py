"""For those in a notebook: `import cifar_ray as cr; model = cr.fit("photos"); model.predict("a.jpg")`."""
