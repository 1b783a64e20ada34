import { Argument, Option, type Command } from 'commander';
import { commandLine, runCommand, type Examples } from './command.ts';

const PURPOSES = ['token', 'cipher'];
const FIELDS = ['ip', 'device_id', 'body'];

/** `keys`: manages the keys, with a subcommand for each task. */
export function keysCommand(): Command {
  const keys = commandLine('keys', 'Manages the keys, as a member of logins_custodian', [
    ['masked-logins keys list', 'show the data keys and the rotations under way'],
    ['masked-logins keys rotate --purpose cipher', 'bring everything under new cipher keys'],
    ['masked-logins keys rewrap --new-kek-file FILE', 'change the key-encryption key'],
  ]);
  const add = (name: string, description: string, examples: Examples, ...arguments_: Argument[]): Command => {
    const subcommand = commandLine(name, description, examples);
    for (const argument of arguments_) subcommand.addArgument(argument);
    subcommand.action(() =>
      runCommand(async () => (await import('./keys.ts')).run(name, subcommand.args, subcommand.opts())),
    );
    keys.addCommand(subcommand);
    return subcommand;
  };

  add('list', 'Shows the data keys with their states, and the rotations under way', [
    ['masked-logins keys list', 'print a table'],
    ['masked-logins keys list --json', 'print an object for a program'],
  ]).option('--json', 'print JSON');

  add('rotate', 'Creates new keys and brings everything under them, in the background', [
    ['masked-logins keys rotate', 'rotate all keys'],
    ['masked-logins keys rotate --purpose token --field ip', 'rotate one'],
  ])
    .addOption(new Option('--purpose <purpose>', 'rotate only keys of this purpose').choices(PURPOSES))
    .addOption(new Option('--field <field>', 'rotate only keys of this field').choices(FIELDS));

  add('pause', 'Pauses the rotations that are running', [
    ['masked-logins keys pause', 'leave the database to its users during the day'],
  ]);

  add('resume', 'Resumes paused rotations', [
    ['masked-logins keys resume', 'continue where they were paused'],
  ]);

  add(
    'destroy',
    'Destroys a key that a rotation has replaced',
    [
      ['masked-logins keys destroy cipher 1', 'destroy a key that no value needs'],
      ['masked-logins keys destroy cipher 1 --losing 42', 'and 42 values with it, for good'],
    ],
    new Argument('<purpose>', 'of the key').choices(PURPOSES),
    new Argument('<version>', 'of the key, as list shows it'),
  ).option('--losing <count>', 'exactly how many values become unreadable for good', '0');

  add(
    'fingerprint',
    'Shows the fingerprints of the key-encryption keys: of the one that the database needs, and of the one set here',
    [['masked-logins keys fingerprint', 'compare them when unsealing fails']],
  );

  add('rewrap', 'Changes the key-encryption key', [
    ['openssl rand -hex 32 > FILE', 'create a key, in your secret store'],
    ['masked-logins keys rewrap --new-kek-file FILE', 'wrap the data keys under it'],
  ])
    .requiredOption('--new-kek-file <path>', 'file that contains the new key')
    .option('--in-place', 'then also write the new key to the file of MASKING_KEK_FILE');

  add('seal', 'Removes the key-encryption key from the database', [
    ['masked-logins keys seal', 'stop masking and revealing; stop workers first'],
  ]);

  add('unseal', 'Puts the key-encryption key into the database', [
    ['masked-logins keys unseal', 'from MASKING_KEK or MASKING_KEK_FILE'],
  ]);
  return keys;
}
