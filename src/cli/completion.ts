/**
 * Completion with the Tab key. A shell's script calls `masked-logins complete SHELL -- WORDS` to get the candidates for
 * the last word, and completes file names if there are none. It evaluates nothing of what is typed.
 */
import { Argument, type Command, type Option } from 'commander';
import { commandLine } from './command.ts';

const SCRIPTS = {
  bash: `_masked_logins() {
  local IFS=$'\\n'
  COMPREPLY=($(masked-logins complete bash -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _masked_logins masked-logins`,
  zsh: `_masked_logins() {
  local -a found=("\${(@f)$(masked-logins complete zsh -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "$found" ]]; then _describe masked-logins found; else _files; fi
}
compdef _masked_logins masked-logins`,
  fish: `function _masked_logins
  set --local before (commandline --tokenize --cut-at-cursor --current-process)[2..-1]
  set --local typed (commandline --current-token --cut-at-cursor)
  set --local found (masked-logins complete fish -- $before "$typed" 2>/dev/null)
  if set --query found[1]; printf '%s\\n' $found; else; __fish_complete_path "$typed"; end
end
complete --command masked-logins --no-files --arguments '(_masked_logins)'`,
};
type Shell = keyof typeof SCRIPTS;

/** A word that can complete what is typed, and its description. */
interface Candidate {
  word: string;
  meaning: string;
}

/** Adds the command `complete` to a program. */
export function addCompletion(program: Command): void {
  program.addCommand(
    commandLine('complete', 'Prints the script that makes a shell complete commands and options', [
      ['source <(masked-logins complete bash)', 'in ~/.bashrc'],
      ['source <(masked-logins complete zsh)', 'in ~/.zshrc, after compinit'],
      ['masked-logins complete fish | source', 'in ~/.config/fish/config.fish'],
    ])
      .addArgument(new Argument('<shell>', 'the shell').choices(Object.keys(SCRIPTS)))
      .addArgument(new Argument('[words...]', 'used by the script: what has been typed'))
      .action((shell: Shell, words: string[]) => {
        const lines =
          words.length === 0
            ? [SCRIPTS[shell]]
            : candidates(program, words).map((each) => render(each, shell));
        process.stdout.write(lines.map((line) => `${line}\n`).join(''));
      }),
  );
}

/** The candidates for the last word, after those before it. */
function candidates(program: Command, words: string[]): Candidate[] {
  const typed = words.at(-1) ?? '';
  let command = program;
  let operands = 0;
  let needsValue: Option | undefined;
  for (const word of words.slice(0, -1)) {
    const subcommand = command.commands.find((each) => each.name() === word);
    if (needsValue !== undefined) needsValue = undefined;
    else if (word.startsWith('-')) {
      needsValue = command.options.find((option) => option.long === word && option.required);
    } else if (subcommand !== undefined) command = subcommand;
    else if (word !== 'help') operands += 1;
  }
  const help = command.createHelp();
  const options = help
    .visibleOptions(command)
    .map(({ long, description }) => ({ word: long ?? '', meaning: description }));
  const operand = needsValue ?? command.registeredArguments[operands];
  const others = [
    ...(operand?.argChoices ?? []).map((word) => ({ word, meaning: '' })),
    ...help.visibleCommands(command).map((each) => ({ word: each.name(), meaning: each.description() })),
  ];
  const takesWord = operand !== undefined || others.length > 0;
  const possible = typed.startsWith('-') || !takesWord ? options : others;
  return possible.filter(({ word }) => word.startsWith(typed));
}

function render({ word, meaning }: Candidate, shell: Shell): string {
  if (shell === 'bash') return word;
  const separator = shell === 'zsh' ? ':' : '\t';
  return meaning === '' ? word : `${word}${separator}${meaning}`;
}
