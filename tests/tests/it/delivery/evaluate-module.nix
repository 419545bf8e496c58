# Evaluates xtask/dist/module.nix for some settings, with a `lib` of only the functions that the module uses: nixpkgs is
# not needed. Types of options are not checked.
{ module, settings }:

let
  inherit (builtins) foldl' isAttrs mapAttrs replaceStrings;

  merge = a: b: a // mapAttrs (name: value: if isAttrs value && isAttrs (a.${name} or null) then merge a.${name} value else value) b;

  lib = {
    inherit replaceStrings;
    inherit (builtins) concatStringsSep;
    mkEnableOption = description: { isOption = true; default = false; };
    mkIf = condition: value: if condition then value else { };
    mkMerge = foldl' merge { };
    mkOption = option: option // { isOption = true; };
    types = { listOf = type: type; package = null; str = null; };
  };

  withDefaults =
    options: values:
    mapAttrs (
      name: option:
      if option ? isOption then values.${name} or option.default else withDefaults option (values.${name} or { })
    ) options;

  evaluated = import module {
    inherit lib;
    config.services.nix-s3-cache = withDefaults evaluated.options.services.nix-s3-cache settings;
    pkgs.nix-s3-cache = "/package";
  };
in
evaluated.config
