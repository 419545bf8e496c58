# services.nix-s3-cache: pushes what the host builds, checks the cache, and deletes what nobody needs.
#
# The units are those of xtask/dist/systemd, and a test compares the two.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkEnableOption mkIf mkMerge mkOption types;
  cfg = config.services.nix-s3-cache;
  user = "nix-s3-cache";
  queue = "/nix/var/nix/gcroots/nix-s3-cache";

  hardening = {
    NoNewPrivileges = true;
    CapabilityBoundingSet = "";
    AmbientCapabilities = "";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    PrivateDevices = true;
    PrivateTmp = true;
    PrivateUsers = true;
    ProcSubset = "pid";
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
    UMask = "0077";
  };

  # systemd expands percent signs.
  escapeSpecifiers = lib.replaceStrings [ "%" ] [ "%%" ];
  # In a command it expands variables too, and reads quotes as JSON does.
  escapeArgument = text: lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON text);

  # A oneshot service of the user with a credential for the bucket, and for others that `credentials` names.
  service =
    {
      description,
      exec,
      credentialsFile,
      credentials ? [ ],
      environment ? { },
      serviceConfig ? { },
    }:
    {
      inherit description;
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      environment = {
        NIX_S3_CACHE = escapeSpecifiers cfg.cache;
        AWS_SHARED_CREDENTIALS_FILE = "%d/aws-credentials";
        HOME = "%C/nix-s3-cache";
      }
      // environment;
      serviceConfig =
        hardening
        // {
          Type = "oneshot";
          User = user;
          Group = user;
          CacheDirectory = "nix-s3-cache";
          LoadCredential = [ "aws-credentials:${credentialsFile}" ] ++ credentials;
          RestrictAddressFamilies = "AF_INET AF_INET6";
          ExecStart = exec;
        }
        // serviceConfig;
    };

  timer = description: calendar: {
    inherit description;
    wantedBy = [ "timers.target" ];
    timerConfig = {
      OnCalendar = calendar;
      RandomizedDelaySec = "1h";
      Persistent = true;
    };
  };
in
{
  options.services.nix-s3-cache = {
    enable = mkEnableOption "services for a Nix binary cache in an S3 bucket";
    package = mkOption {
      type = types.package;
      default = pkgs.nix-s3-cache;
      defaultText = "pkgs.nix-s3-cache";
      description = "The package of the tools.";
    };
    cache = mkOption {
      type = types.str;
      example = "s3://my-cache?region=eu-west-2";
      description = "The URL of the bucket.";
    };
    credentialsFile = mkOption {
      type = types.str;
      example = "/run/secrets/nix-s3-cache-aws";
      description = ''
        A credentials file of AWS for a user with the policy of `cache-policy --upload`. An empty file makes the tools use
        the role of the host. The file is passed by LoadCredential, so only root needs to be able to read it.
      '';
    };
    queue = {
      enable = mkEnableOption "pushing every path that this host builds";
      signingKeyFile = mkOption {
        type = types.str;
        example = "/run/secrets/cache.sec";
        description = "The secret key file that `cache-sign keygen` wrote. Only root needs to be able to read it.";
      };
      upstream = mkOption {
        type = types.listOf types.str;
        default = [ "https://cache.nixos.org" ];
        description = "Caches whose paths are not pushed.";
      };
    };
    collect = {
      enable = mkEnableOption "a timer that deletes what nobody needs from the cache";
      credentialsFile = mkOption {
        type = types.str;
        default = cfg.credentialsFile;
        defaultText = "config.services.nix-s3-cache.credentialsFile";
        description = "As credentialsFile, for a user with the policy of `cache-policy --collect`.";
      };
      options = mkOption {
        type = types.listOf types.str;
        default = [
          "--older-than"
          "30d"
        ];
        description = "Options of `s3-push collect`.";
      };
      calendar = mkOption {
        type = types.str;
        default = "daily";
        description = "When to run, as in systemd.time(7).";
      };
    };
    check = {
      enable = mkEnableOption "a timer that checks the cache";
      publicKeys = mkOption {
        type = types.listOf types.str;
        description = "The public keys by which the paths of the cache must be signed.";
      };
      calendar = mkOption {
        type = types.str;
        default = "weekly";
        description = "When to run, as in systemd.time(7).";
      };
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      environment.systemPackages = [ cfg.package ];
      users.users.${user} = {
        isSystemUser = true;
        group = user;
      };
      users.groups.${user} = { };
    }

    (mkIf cfg.queue.enable {
      nix.settings.post-build-hook = "${cfg.package}/lib/nix-s3-cache/queue-hook";
      systemd.tmpfiles.rules = [ "d ${queue} 0755 ${user} ${user} -" ];
      systemd.paths.nix-s3-cache-queue = {
        description = "Watch the queue of store paths for the binary cache";
        wantedBy = [ "paths.target" ];
        pathConfig.DirectoryNotEmpty = queue;
      };
      systemd.services.nix-s3-cache-queue =
        service {
          description = "Push queued store paths to the binary cache";
          exec = "${cfg.package}/lib/nix-s3-cache/push-queue";
          inherit (cfg) credentialsFile;
          credentials = [ "cache.sec:${cfg.queue.signingKeyFile}" ];
          environment = {
            CACHE_KEY_FILE = "%d/cache.sec";
            NIX_S3_CACHE_UPSTREAM = escapeSpecifiers (lib.concatStringsSep " " cfg.queue.upstream);
          };
          serviceConfig = {
            ReadWritePaths = queue;
            # For the socket of the Nix daemon.
            RestrictAddressFamilies = "AF_INET AF_INET6 AF_UNIX";
            Restart = "on-failure";
            RestartSec = "1min";
            Nice = 10;
            IOSchedulingClass = "idle";
          };
        }
        // {
          startLimitIntervalSec = 0;
        };
    })

    (mkIf cfg.collect.enable {
      systemd.timers.nix-s3-cache-collect =
        timer "Delete what nobody needs from the binary cache, once a day" cfg.collect.calendar;
      systemd.services.nix-s3-cache-collect = service {
        description = "Delete what nobody needs from the binary cache";
        exec = lib.concatStringsSep " " ([ "${cfg.package}/bin/s3-push collect" ] ++ map escapeArgument cfg.collect.options);
        inherit (cfg.collect) credentialsFile;
      };
    })

    (mkIf cfg.check.enable {
      systemd.timers.nix-s3-cache-check = timer "Check the binary cache, once a week" cfg.check.calendar;
      systemd.services.nix-s3-cache-check = service {
        description = "Check signatures and NARs of the binary cache";
        exec = "${cfg.package}/lib/nix-s3-cache/check-cache";
        inherit (cfg) credentialsFile;
        environment = {
          CACHE_PUBLIC_KEY = escapeSpecifiers (lib.concatStringsSep " " cfg.check.publicKeys);
          NIX_S3_CACHE_UPSTREAM = escapeSpecifiers (lib.concatStringsSep " " cfg.queue.upstream);
        };
      };
    })
  ]);
}
