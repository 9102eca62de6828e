"""A table of the study file, as pydantic reads and describes it. Settings of perturbations and objectives are such."""

import ast
import inspect
import itertools
import textwrap

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Section(BaseModel):
    """A table of the study file: frozen, and no key is accepted that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describes each key by the docstring of its field. Pydantic's use_attribute_docstrings would parse the sources
        whenever hpo starts, for a tenth of a second.
        """
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for key, text in _attribute_docstrings(cls).items():
            if key in properties:
                properties[key]["description"] = text
        return schema


def _attribute_docstrings(kind: type[Section]) -> dict[str, str]:
    """The strings below the fields of a section and of those that it inherits from."""
    found = {}
    for section in reversed([parent for parent in kind.__mro__ if issubclass(parent, Section)]):
        try:
            source = textwrap.dedent(inspect.getsource(section))
        except OSError:  # made at run time
            continue
        (definition,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
        for pair in itertools.pairwise(definition.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = inspect.cleandoc(text)
    return found
