# The tools as a package of nixpkgs, with man pages, completions, and the scripts of the units.
{
  lib,
  rustPlatform,
  installShellFiles,
  makeWrapper,
  coreutils,
  nix,
  src,
  version,
}:

rustPlatform.buildRustPackage {
  pname = "nix-s3-cache";
  inherit src version;
  cargoLock.lockFile = src + "/Cargo.lock";

  nativeBuildInputs = [
    installShellFiles
    makeWrapper
  ];

  # The tests start servers, and some of them require MinIO.
  doCheck = false;
  cargoBuildFlags = [
    "--workspace"
    "--exclude=xtask"
    "--exclude=tests"
  ];

  postBuild = ''
    cargo run --release --offline --package tests --example command-line-docs -- docs-of-tools
  '';

  postInstall = ''
    installManPage docs-of-tools/man/man1/*.1
    installShellCompletion --bash docs-of-tools/bash-completion/completions/*
    installShellCompletion --zsh docs-of-tools/zsh/site-functions/*
    installShellCompletion --fish docs-of-tools/fish/vendor_completions.d/*
    mkdir -p $out/lib/nix-s3-cache
    for script in queue-hook push-queue check-cache; do
      install xtask/dist/lib/$script $out/lib/nix-s3-cache/$script
      wrapProgram $out/lib/nix-s3-cache/$script \
        --prefix PATH : $out/bin:${
          lib.makeBinPath [
            coreutils
            nix
          ]
        }
    done
  '';

  meta = {
    description = "Small tools that build, sign, publish and read a Nix binary cache in an S3 bucket";
    homepage = "https://github.com/nix-s3-cache/nix-s3-cache";
    license = with lib.licenses; [
      mit
      asl20
    ];
    platforms = lib.platforms.linux;
  };
}
