# install and export rules
