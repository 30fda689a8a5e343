"""The API for notebooks: `import cifar_ray as cr; model = cr.fit("photos"); model.predict("a.jpg")`."""
