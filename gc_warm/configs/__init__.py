"""Endpoint configs as Python sees them: found, rendered, loaded, and summed up.

A config is a folder, as `globus-compute-endpoint configure` takes it: a Jinja template that makes
the YAML of a user endpoint from the options that come with a task, a JSON schema of these options,
and perhaps a `config.yaml` of the endpoint itself. Each step has its module:

    folders     finds the folder of a config, and the files in it
    options     reads options, and holds them against the schema
    rendering   makes the YAML from the template and the options
    loading     makes an engine from the YAML
    meaning     reads off that engine what the config means for warm state and for the bill
    defaults    writes options into the template, as its defaults
    installing  makes an endpoint of all that, with the endpoint's own command

Rendering and loading are done by the endpoint's own functions, and the meaning is read off the
engine, not off the YAML. So all of it holds for any config, not only for those of gc_warm.

Five modules serve the others: `homes` knows where configs may be, `text` reads files, and YAML with
the place of each setting, `templates` reads templates as Jinja's parser does, `complaints` turns an
error of the endpoint's loader into a message and a place, and `containers` knows what workers see
in one.
"""
