use crate::Error;
pub(crate) fn to_lark(_: &str) -> Result<String, Error> { Err(Error::Invalid(String::new())) }
