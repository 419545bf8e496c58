{
  description = "Small tools that build, sign, publish and read a Nix binary cache in an S3 bucket";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEachSystem = f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      version = (lib.importTOML ./Cargo.toml).workspace.package.version;
    in
    {
      packages = forEachSystem (pkgs: rec {
        default = nix-s3-cache;
        nix-s3-cache = pkgs.callPackage ./xtask/dist/package.nix {
          inherit version;
          src = self;
        };
      });

      overlays.default = final: _: {
        nix-s3-cache = final.callPackage ./xtask/dist/package.nix {
          inherit version;
          src = self;
        };
      };

      devShells = forEachSystem (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.cargo
            pkgs.clippy
            pkgs.rustc
            pkgs.rustfmt
            # For the end-to-end tests.
            pkgs.minio
            pkgs.minio-client
            pkgs.versitygw
            pkgs.shellcheck
          ];
        };
      });

      nixosModules.default = {
        imports = [ ./xtask/dist/module.nix ];
        nixpkgs.overlays = [ self.overlays.default ];
      };
    };
}
