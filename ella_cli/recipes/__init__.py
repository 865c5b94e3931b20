"""The published settings as files that `ella run --config` takes, and what is known of them.

settings/NAME.yaml   a whole run.yaml
facts.yaml           deviations from the paper and unknowns, with the recipes they hold for
"""

from ella_cli.recipes.recipe import (
    Fact,
    Recipe,
    copy_recipe,
    find_recipe,
    recipe_names,
    settings_file,
)

__all__ = ["Fact", "Recipe", "copy_recipe", "find_recipe", "recipe_names", "settings_file"]
